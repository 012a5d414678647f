"""Where a request's time goes: packets at every edge of a namespace -> how long each hop of each request took."""

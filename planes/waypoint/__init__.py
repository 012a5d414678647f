"""The waypoint: an L7 proxy in front of services, entered and left through tunnels. Policy and routes once, here."""

"""The project measuring itself: proxies, links, bring-up, side by side with peers."""

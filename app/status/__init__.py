"""`/status`: what is served and how it goes, as one JSON snapshot or as an event each second."""

"""The page and the HTTP API of `fairweather serve`: photos and videos in, restored ones out, within limits."""

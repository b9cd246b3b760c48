"""The web page and the HTTP API of `fairweather serve`."""

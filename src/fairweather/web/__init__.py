"""The page and the HTTP API that `fairweather serve` starts: photos in, clear photos out, within limits."""

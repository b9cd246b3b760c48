"""Weather: the physics of haze and rain, as pure functions on batches of pictures."""

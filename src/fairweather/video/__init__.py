"""Moving pictures (extra `video`): clips, folders of frames, animations and live sources, restored on the way."""

"""Videos (extra `video`): files, folders of frames, animations and live sources, restored frame by frame."""

"""Policy pack: rules that hold for every stack, whatever its program says."""

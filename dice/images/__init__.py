"""Image sets: names, folders and lists to decoded pixels and labels; downloads."""

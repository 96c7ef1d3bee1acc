"""Object storage and other remote files."""

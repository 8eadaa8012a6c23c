"""Starting a program inside a cgroup."""

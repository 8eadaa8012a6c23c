"""The kernel's cgroup v2 files, and nothing else."""

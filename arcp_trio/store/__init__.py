"""Where what must outlive the process is kept."""

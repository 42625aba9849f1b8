"""What commands show: tables that fit a terminal, notices, and files for other programs."""

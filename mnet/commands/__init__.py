"""What the commands do and print; `mnet.cli` declares them and imports these modules when a command runs."""

"""The command line: one file a subcommand, each calls one public function. Heavy imports happen inside the commands."""

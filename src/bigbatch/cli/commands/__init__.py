"""One file a subcommand, each calls one public function; a command of two kinds of study has a file for each."""

"""What the network would cost: alpha-beta models of exchanges between workers, fitted to measurements."""

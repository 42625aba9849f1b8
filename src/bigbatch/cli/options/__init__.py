"""What commands read: options that several share, and the values of them that take more than a word to check."""

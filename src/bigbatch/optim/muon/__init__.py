"""Muon, SOAP before it, and which parameters are matrices for them."""

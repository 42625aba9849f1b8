"""Muon with SOAP's preconditioning before it, as `bigbatch.optim.SoapMuon` has it and rule `soap_muon` plans it: what soap_tried.py came to."""

CHOICES = ({},)
RULE = "soap_muon"


def recipe(planned):
    """The plan of its own rule."""
    return planned

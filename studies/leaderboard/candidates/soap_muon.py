"""Muon with SOAP's preconditioning before it, as `bigbatch.optim.SoapMuon` has it and rule `soap_muon` plans it; from soap_tried.py."""

CHOICES = ({},)
RULE = "soap_muon"


def recipe(planned):
    """The plan of its own rule."""
    return planned

"""Decentralised training: each worker has its own weights and averages them with its neighbours'.

May import `comm.rendezvous`, `comm.ranks` and `comm.model_averaging`.
"""

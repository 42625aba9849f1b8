"""Decentralised training: each worker has weights of its own and averages them with neighbours'.

May import `comm.rendezvous`, `comm.ranks` and `comm.model_averaging`.
"""

"""Compressors: gradients, or displacements of local steps, made smaller before they are averaged over ranks."""

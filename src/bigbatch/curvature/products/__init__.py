"""Products of the Hessian and the Gauss-Newton matrix of a mean loss with vectors, over a data set and over ranks."""

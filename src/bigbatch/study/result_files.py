"""Names of the files that studies write their numbers to; read without torch, by those who only look for them."""

BRANCHES = "branches.json"
CRITICAL = "critical.json"
CURVATURE = "curvature.json"
NOISE = "noise.json"
SIMULATION = "simulate.json"
STEPS = "steps.json"

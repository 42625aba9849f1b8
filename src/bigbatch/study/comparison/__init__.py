"""Did accuracy hold? Arms over seeds, the tests that judge them, and what is stored. `bigbatch.scale` makes all of it."""

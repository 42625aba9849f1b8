"""Data sets: where they are looked for, and how they are read and checked."""

"""The stages of the circle: each reads database and store, calls one part of the house, and records the result."""

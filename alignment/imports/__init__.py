"""Votes and clips from elsewhere: read, checked row by row, taken whole or not at all."""

"""Votes and clips that leave the house: what may go, under which names and licences, in the formats others read."""

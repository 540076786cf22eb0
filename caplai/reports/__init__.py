"""The figures that the agency asks for (floor 3, beside the doors): rolled up by day, and read for any period.

It must not know the doors, nor who reads the figures (the command line, the console's pages).
Invariant: a figure is the same from the rollups and from the rows, and no rollup names a person.
"""

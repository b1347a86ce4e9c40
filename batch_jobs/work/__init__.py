"""The work itself: who has which row, the engine processes, and the commit of what they finish."""

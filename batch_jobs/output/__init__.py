"""The output folder: its layout, who may write to it, and how finished rows get into it."""

"""What this storey adds to the registry: importing this module registers the tasks and the shipped grids."""

from ablations.grid import register_shipped
from ablations.tasks import recall, text

register_shipped()

__all__ = ["recall", "text"]

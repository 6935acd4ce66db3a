"""Export generated and real hearts with their masks in the layouts of other tools."""

from cardiodit.dataset_export.layouts import LAYOUTS, Export, export_dataset

__all__ = ["LAYOUTS", "Export", "export_dataset"]

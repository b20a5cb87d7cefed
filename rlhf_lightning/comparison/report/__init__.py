"""report.html: a comparison as one file that opens in a browser, anywhere, without a network."""

from rlhf_lightning.comparison.report.writing import write_report

__all__ = ["write_report"]

"""mnet: small MobileNets for Cortex-M, proved bit for bit."""

__version__ = "0.1.0"

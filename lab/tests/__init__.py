"""The workbench: certificates and the simulated key manager."""

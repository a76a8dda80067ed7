"""The workbench: what the demo, the tests and the measurements need. The running gateway never imports it."""

"""The demo, and the text that weft/tiny was pretrained on."""

"""Self-contained HTML pages: templates, figures as SVG, thumbnails."""

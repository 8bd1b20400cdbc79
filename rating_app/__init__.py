"""The rating app: a blind A/B page on FastAPI and Gradio, served by one process, without torch."""

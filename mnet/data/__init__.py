"""The bundled sample: 4,000 + 1,000 images of Fashion-MNIST, see README.md."""

"""What metrics compare: features of images, by Inception-v3, by a classifier of our own, or by any function."""

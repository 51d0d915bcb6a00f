"""How far samples are from data: functions of images, or of the features of images."""

# By name, or by its name on one host; either way with all hosts that have it.
terraform import reflejo_image.debian debian
terraform import reflejo_image.debian alpha/debian

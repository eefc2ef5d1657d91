"""What the scripts need beside the method: files, devices, pictures, results."""

from .frame import app

app(prog_name="hf_tokaccel")

from caplai.cli import main

main()

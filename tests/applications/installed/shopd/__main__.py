from shopd.main import main

main()
